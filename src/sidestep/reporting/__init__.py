"""Reports: one page that opens anywhere, or a folder of figures, made from what runs did with every image."""
