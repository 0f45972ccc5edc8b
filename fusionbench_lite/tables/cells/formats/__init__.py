"""One module per format: a grid as text, CSV, Markdown, LaTeX, HTML and a picture."""
