"""Statistics, on SciPy and NumPy.

means              a mean and its interval, by Student's t; a difference of means, by Welch's
bootstrap          means of values that are drawn again, and the interval that they span
correlation        Pearson's and Spearman's, and how much of the latter holds beyond a sample
distribution       many values in a few numbers
length_controlled  a win rate without what the length of answers makes of it

Each is imported from its own module: `compare` needs the first, and imports neither NumPy nor SciPy before it must.
"""
