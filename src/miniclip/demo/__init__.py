"""Page in a browser that searches an index of images: `miniclip demo`. Its modules need the extra `demo`."""
