"""`mpcfl audit`: experiments that try to show a fault in the running code; each is a function."""
