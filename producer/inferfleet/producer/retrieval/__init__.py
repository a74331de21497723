"""Indexes of documents: making chunks, having the fleet embed them, and searching them.

index      the handle on an index
sync_index its blocking twin
adding     putting documents into an index
chunking   cutting a text into chunks
counts     counting searches
fetching   finding the passages of a job
embedding  having a pool embed texts
files      reading documents from files
"""
