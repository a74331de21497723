"""Redis: connections, the pipeline of commands, and the fleet's records with the scripts that change them."""
