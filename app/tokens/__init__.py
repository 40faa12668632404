"""How many tokens a text has, and what an answer used."""
