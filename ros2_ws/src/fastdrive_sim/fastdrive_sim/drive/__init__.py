"""The closed loop: a vehicle in the simulator that follows the plans of the node, and the record of its runs."""
