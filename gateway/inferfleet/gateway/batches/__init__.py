"""Files and batches over HTTP, as in OpenAI's API.

    storage       the content of files, in a folder or a bucket
    uploads       receiving a file
    files         the files of all tenants
    file_routes   files over HTTP
    batch_routes  batches over HTTP
    runner        which batches this gateway runs
    run           running one batch to its end
    input         examining a batch's input, and ordering its lines
    jobs          submitting the lines of a batch
    lines         the lines of the output, in OpenAI's form
    output        the output while the batch runs, in parts

A batch is run by ``inferfleet.producer.batch.lines``, as from the command line.
"""
