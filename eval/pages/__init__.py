"""What people read: figures, sentences, Markdown and the web page."""
