"""A results folder as one HTML page to read: all of it in one file, nothing fetched from elsewhere.

`normalcy.results.folder` reads the folder, `pictures` and `figures` draw, `markup` escapes, `page` and `comparison`
write the pages.
"""

from normalcy.report.comparison import write_comparison
from normalcy.report.page import write_report

__all__ = ["write_comparison", "write_report"]
