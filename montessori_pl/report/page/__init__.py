"""The page of `report`: one HTML file on one run or several, and its figures as PNG and CSV.

run_data      what is read of a run directory
*_figures     what the figures show, as plain numbers
svg, png      how they are drawn
verdict       students beside a baseline
browsers      rows of data that a reader looks through
tables, page  the rest of the page
assets        its style and its script

Each is imported from its own module.
"""
