"""Rules of ``lorasmith check``: each is one function from facts about a dataset to findings."""
