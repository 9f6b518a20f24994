"""One program per MPI rank: what each role says to the others."""
