"""Proposes a config for a table: facts about its columns, choices, and their text as commented TOML."""
