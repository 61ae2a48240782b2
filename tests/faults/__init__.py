"""What goes wrong: killed daemons, refusals, lost notifications, whatever happens to a host."""
