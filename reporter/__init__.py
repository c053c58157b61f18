"""The reporter: mails the statistics of a day to those who asked for them, and warns when a person is needed."""
