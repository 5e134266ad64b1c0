"""What is decided: routers, samplers, halting rules, exit rules."""
