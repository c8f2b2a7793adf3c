package main

func whyRow() row { return row{} }
