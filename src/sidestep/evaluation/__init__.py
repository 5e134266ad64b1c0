"""Reports, benches and their rivals, curves of exits, calibration."""
