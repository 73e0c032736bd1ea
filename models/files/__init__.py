"""Files on disk: locks, drafts that become the final file by a rename, regular files, and files of rows."""
