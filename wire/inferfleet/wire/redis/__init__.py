"""Redis: connections, the pipeline of commands, and the records of the fleet with the scripts for them."""
