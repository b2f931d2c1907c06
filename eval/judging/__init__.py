"""The judge: whom to ask within a budget, what counts as a verdict, and what the requests came to."""
