"""Files and batches over HTTP, as in OpenAI's API.

    storage       the content of files, in a folder or a bucket
    uploads       receiving a file
    files         storing, finding and deleting files
    file_routes   files over HTTP
    batch_routes  batches over HTTP
    runner        which batches this gateway runs
    run           running one batch to its end
    input         examining a batch's input, and ordering its lines
    jobs          submitting the lines of a batch
    lines         how a line ended, in OpenAI's form
    output        the parts in which the output is kept while the batch runs

``inferfleet.producer.batch.lines`` runs the lines, as it does for the command line.
"""
