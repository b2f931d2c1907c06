"""What the files of an evaluation say: intervals, comparisons, curves, and the summary of a report."""
