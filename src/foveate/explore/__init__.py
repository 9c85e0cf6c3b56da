"""What one can look at: figures with matplotlib (``foveate[plots]``), and the explorer's HTML page.

The readings behind both are in `inspect`. A page is a `report.Report`, filled by `record.sample`,
written by `html.write`; its template, style and script are in `templates/`.
"""
