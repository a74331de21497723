"""Indexes of documents: making chunks, having the fleet embed them, and searching them.

    index      the handle on an index
    sync_index its blocking twin
    adding     putting documents into an index
    chunking   cutting a text into chunks
    embedding  having a pool embed texts
    fetching   finding the passages of a job
    counts     counting searches

What an index holds is in Redis; ``wire.redis.indexes`` reads and writes it.
"""
