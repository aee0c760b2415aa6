"""Answers over HTTP: requests that come together run as one batch of one program."""
