"""Tables, figures and one page of HTML, made from the records of a run, never from a live one."""
