"""Reports: `report.html`, plots, the tables that `abstain evaluate` prints, and exports for other tools."""
