"""What is signed: batches, rules, the signing kernel, and the verifier's own reader."""
