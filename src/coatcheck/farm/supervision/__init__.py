"""The lives of the processes: started, watched, started again, stopped, and what a stop leaves behind."""
