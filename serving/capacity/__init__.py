"""How many gateways and GPUs a load needs: a simulation of the service's two queues, from measured costs."""
