"""RabbitMQ: connections, what is declared there, and the frames of messages that come and go."""
