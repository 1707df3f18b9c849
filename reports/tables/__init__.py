"""Tables: what each says, and the forms a table is written in."""
