"""Files on disk: locks, drafts that are renamed into place, regular files, and files of rows."""
