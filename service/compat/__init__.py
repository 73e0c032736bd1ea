"""Private interfaces of other libraries that abstain uses or changes: all of them, with the reason and a test each."""
