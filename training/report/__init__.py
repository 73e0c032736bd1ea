"""Reports: `report.html`, plots, the tables that `abstain evaluate` prints, and exports for other tools.

page              writes `report.html` from the records of contents, which the three *_section modules fill
ood_plots         OOD sets against the test rows: ROC curves, distributions of a score, detection rates
confidence_plots  reliability diagram, risk against coverage
fit_plots         loss, traces, ranks and agreement of chains
regression_plots  predicted against true values, interval widths, PIT histogram
plots             the same plots as PNG files, for `abstain evaluate --plots`
printout          tables in the terminal
export            netCDF and TensorBoard
"""
