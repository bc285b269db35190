"""One job over many nodes, or over one that may be interrupted: leases, acknowledgements, the journal.

leases.py         who works on which files, and until when; pure bookkeeping
progress.py       what is done, as the journal has it; the checkpoint's directory
orchestrator.py   one job: listing → leases → acknowledgements → journal
agent.py          one node: builds its pipeline, feeds it with leases, builds it anew when it dies
receiver.py       where rows wait until their lease is whole
crew.py           orchestrator and agents in this process (one node), or as Ray actors (many)
job.py            what the caller has of it: an iterable of batches
"""
