"""How many tokens a text has, and how many an answer used."""
