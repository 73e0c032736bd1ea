"""All private interfaces of other libraries that abstain uses or changes, each with the reason and a test."""
