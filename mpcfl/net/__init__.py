"""How parties talk: transports, framing, authenticated channels, and the count of what was sent."""
