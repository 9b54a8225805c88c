"""The playground: a page on this machine on which scales are moved and completions are read.

asked.py      what the page's address says: prompt, columns, noise
loaded.py     the runs and their models, memory estimated first
facts.py      what the page is told of a run: adapters, settings, the measured scale curve
prompts.py    prompts of the run to start from: the elicitation grid, rows that `find` found
rows.py       these rows by name
chat.py       a typed prompt as a turn of a chat
writing.py    one request as events: tokens, scores, differences
scoring.py    the detector's score of a text
own_text.py   scores and differences of a found row's own text
worker.py     one generation at a time, a bounded queue, cancellation
pins.py       what is kept on request
server.py     the routes, and who may ask
serving.py    the whole of it, until Ctrl-C
assets/       the page
"""
