package main

func installSudo() error { return nil }
