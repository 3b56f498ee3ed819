"""The page of an open-loop evaluation: the paper's tables for our data, who is first, and where plans go wrong."""
