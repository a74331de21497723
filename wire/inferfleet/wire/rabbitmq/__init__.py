"""RabbitMQ: connections, exchanges and queues, and the frames of messages."""
