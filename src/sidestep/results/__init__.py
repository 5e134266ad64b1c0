"""Pages, figures and the ledger, made from run folders."""
