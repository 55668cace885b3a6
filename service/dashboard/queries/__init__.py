"""What pages read. Those for operators see every project, so no other page may use them."""
