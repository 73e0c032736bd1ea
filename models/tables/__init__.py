"""Tables: their columns, and how values of a column become numbers."""
