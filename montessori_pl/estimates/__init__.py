"""What a run will take, before it runs: requests, tokens, optimizer steps and US dollars."""
