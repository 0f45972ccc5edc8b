"""Methods that learn something at merge time from unlabelled data.

A method file says what is learned and builds a learner from the experts; the subpackage `engine` holds the procedures
that learners start, and drives any of them.
"""
