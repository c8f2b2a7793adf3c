package main

func postgresRow() row { return row{} }
