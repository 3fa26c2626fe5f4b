"What all learners share"
